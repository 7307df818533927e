"""Turns the bytes of records into arrays on the host. Its modules, in the order of the data flow:

plan         Which features a config asks for, under which names, and how they are decoded.
columns      Decodes the features: columns of numbers in one call, images and text one by one.
functions/   Traces a user's `map_fn`, runs a `transform`, and refuses one that is not repeatable.
decoder      Compiles columns and `map_fn` to one TensorFlow function of many records.
padding      Finds what `pad_to` means for the records of a dataset.
stacking     Stacks records of any size as columns, padded.
record_spec  Gives shapes and dtypes of a record on the devices, and what stays on the host.
reader       Reads records by number, decodes them, and replaces corrupt ones.
"""
