"""What guests may be and what follows from it: pure rules from specs and state to specs, faults and decisions.

Invariant: nothing here waits, looks at a clock or talks to anybody; services and controllers do, and ask here what is right.
"""
