"""The command line: ``quarterdeck run | chat | env | download``, one file per command.

What is needed to understand a command line (this file, ``main``, ``arguments`` and the commands' own files) imports
nothing heavy, so that help and mistakes are answered at once; a command imports the rest when it is executed.
"""
