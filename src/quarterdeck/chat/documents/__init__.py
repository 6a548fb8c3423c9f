"""Documents: read, cut into passages, ranked, and held against the citations of an answer."""
