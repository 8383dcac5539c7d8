"""Files, manifests, integrity checks and provenance of artefacts."""
