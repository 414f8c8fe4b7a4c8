"""`python -m bench.store`: three of our members beside three of etcd's, under the same load.

`member` is one of ours, `sides` starts both clusters, `client` and `load` drive them through etcd's API, `sections`
measures, `report` compares.
"""
