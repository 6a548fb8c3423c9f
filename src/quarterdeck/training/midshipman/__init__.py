"""midshipman, the embedded model: its training examples, its vocabulary and its evaluation.

    families   primer, drills, grounded, described, natural, tooling, talk, languages
    example    what every family makes: messages, documents or tools, and the completion; rendered by quarterdeck.chat
    mixture    shares of the families, in stages; an endless, repeatable stream of examples
    vocabulary the tokenizer
    evaluate   what a model can do, counted; `python -m quarterdeck.training.midshipman.evaluate`

The scripts that fetch outside texts, train and export are in training/midshipman of the repository.
"""
