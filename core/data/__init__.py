"""From rows to tensors: segments, ids and labels, packing, batches."""
