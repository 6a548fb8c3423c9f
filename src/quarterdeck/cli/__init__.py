"""The command line: ``quarterdeck run | chat | plan | quantize ...``, one file per command.

What is needed to understand a command line (this file, ``main``, ``arguments``, ``flags``, ``loading``,
``server_address``, ``rows``, ``targets`` and the commands' own files) imports nothing heavy, so that help and mistakes
are answered at once; a command imports the rest when it is executed.

``run``    ``run_rows`` over the rows of ``rows``; ``answering`` is a loaded model with settings
``chat``   ``session`` reads lines and shows answers. It knows a ``dialogue``, which is a ``conversation`` with a model
           here or a ``remote`` one with a server, and a terminal: plain lines (``terminal``), or a person
           (``rich_terminal``) with ``editor`` for what is written, ``markdown`` over ``live`` for what is answered, and
           ``footnotes`` for what is cited
"""
