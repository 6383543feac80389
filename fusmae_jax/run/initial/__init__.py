"""What a run starts from: weights of another run, taken by stated rules, and the record of it.

`sources.py` opens the weights, in the names of our model; `transfer.py` decides for every parameter of the
run what becomes of it; `begin.py` places them on the devices and writes down what was done.
"""
