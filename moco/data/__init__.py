"""Turns images into batches.

Read in this order: boxes, decode, source, folder, beton, datasets, sampler, loader, augment.

`datasets.open_split` finds the images and labels. A `Source` reads one image. The `Sampler` gives the order. The
`Loader` cuts uint8 crops on threads. `Augment` changes the colours of whole batches on the training device.
"""
