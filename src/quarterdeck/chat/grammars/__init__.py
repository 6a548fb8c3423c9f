"""From tools, schemas and documents to grammars that constrain decoding."""
