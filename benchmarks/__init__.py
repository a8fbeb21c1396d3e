"""Workloads side by side with peers: ratios within one run, because machines are shared and noisy."""
