"""The cluster as files: documents of guests, pools, networks and projects, compared with what is there and carried out.

`documents` reads files, `plan` decides, `carry_out` acts; `reader`, `writer`, `overlay`, `differ` and `paths` turn YAML
into the API's messages and back, whatever their fields are.
"""
