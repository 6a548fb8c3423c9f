"""Programs that make the models shipped inside Quarterdeck; not part of the installed package."""
