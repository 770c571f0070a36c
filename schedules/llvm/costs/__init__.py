"""Which variant and decisions are taken where nothing was tuned: cost models, fitted to measurements."""
