"""`fedmops pretrain`: a small Llama-type language model from text, to serve as a backbone."""
