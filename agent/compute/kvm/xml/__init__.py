"""Domain XML: a guest as libvirt is told to run it, one module a concern. Pure: from values to elements.

See https://libvirt.org/formatdomain.html.
"""
