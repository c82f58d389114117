"""Bugs in C++ for high-level synthesis: the Chrysalis set (Wan et al. 2024), planting, finding and confirming them.

`dataset` reads functions and bug descriptions, `inject` puts a bug into its source, `rules` names the kind and line of
a bug from the text, and `oracle` compiles original and faulty code with sanitizers and compares what they do.
"""
