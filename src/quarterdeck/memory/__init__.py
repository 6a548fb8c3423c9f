"""How much memory a model takes, before it is loaded.

`sizes` has the arithmetic, `machine` asks what there is, `plan` holds one against the other and looks for what would
make a model fit; `loading` refuses a load that cannot succeed.
"""
