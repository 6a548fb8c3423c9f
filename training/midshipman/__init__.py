"""How the embedded model `midshipman` is made: data, vocabulary, training, export. Start with README.md."""
