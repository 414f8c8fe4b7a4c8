"""Backups of a cluster as sealed files. The form of a file is told in proto/gugus/cluster/v1/backup.proto.

Empty on purpose: what needs cryptography is imported by the commands that use it (docs/decisions/0006).
"""
