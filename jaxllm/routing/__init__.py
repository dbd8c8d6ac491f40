"""Layer routing after Dr.LLM (arXiv 2510.12773): routes that skip and repeat layers, searched, learned and run.

A frozen model's route says how often each layer runs (0, 1, 2), once for a whole sequence.
"""
