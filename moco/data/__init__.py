"""Images to batches.

Read in this order: boxes, decode, source, folder, beton, datasets, sampler, loader, augment.

`datasets.open_split` says which images and labels there are. A `Source` reads one of them. The `Sampler` gives the
order. The `Loader` cuts uint8 crops on threads. `Augment` changes the colours of whole batches on the training device.
"""
