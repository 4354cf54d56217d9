"""Kernels: typed faces of compiled code per device, and the layouts of encoded blocks."""
