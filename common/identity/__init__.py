"""Who is who in a cluster: the certificate authority, certificates, join tokens and the files that hold them.

Empty on purpose: the command line needs a part of it only, and starts faster without the rest.
"""
