"""Sync bundles: one verified file that carries the source to a host without git.

What a host needs of it runs on Python 3.8 with the standard library alone: a bundle carries it along.
"""
