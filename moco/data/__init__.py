"""Images to batches. Read in this order: boxes, decode, source, folder, beton, datasets, sampler, loader,
augment.

`datasets.open_split` says which images and labels, a `Source` reads one of them, the `Sampler` gives the order, the
`Loader` cuts uint8 crops on threads, and `Augment` does everything photometric on whole batches on the training
device.
"""
