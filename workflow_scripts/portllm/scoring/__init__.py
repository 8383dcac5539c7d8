"""Score models with lm-eval, by transformers or vLLM."""
