"""File formats: how tensors lie in a file. Nothing here computes.

`safetensors` reads and writes safetensors files, `qrs_file` stores QTensors in them, `shards`
finds the files of a checkpoint folder, `atomic` makes every output appear whole or not at all.
Import what you need from its module.
"""
