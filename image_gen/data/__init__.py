"""Labelled images: readers, transforms and cached latents.

Import from the modules: this file stays empty so that training from cached latents needs no image decoder.
"""
