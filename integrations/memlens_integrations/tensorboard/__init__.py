"""The tab "Memory" of TensorBoard: the pages of `memlens.web`, on the runs in its logdir.

TensorBoard finds it through the entry point `memlens` of the group `tensorboard_plugins`.
"""
