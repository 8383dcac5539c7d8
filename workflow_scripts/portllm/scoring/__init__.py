"""Score models with lm-eval, on transformers or vLLM."""
