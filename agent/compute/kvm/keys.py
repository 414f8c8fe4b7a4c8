"""Keys of a keyboard: QEMU's names (QKeyCode in qapi/ui.json) to Linux's numbers (linux/input-event-codes.h), which libvirt takes."""

from collections.abc import Sequence

from common.errors import invalid

MAX_KEYS = 16
"""Most keys at once (VIR_DOMAIN_SEND_KEY_MAX_KEYS of libvirt)."""

_ROWS: tuple[tuple[int, str], ...] = (
    (1, "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p bracket_left bracket_right ret ctrl"),
    (30, "a s d f g h j k l semicolon apostrophe grave_accent shift backslash z x c v b n m comma dot slash shift_r"),
    (55, "kp_multiply alt spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock"),
    (71, "kp_7 kp_8 kp_9 kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal"),
    (86, "less f11 f12"),
    (96, "kp_enter ctrl_r kp_divide sysrq alt_r"),
    (102, "home up pgup left right end down pgdn insert delete"),
    (119, "pause"),
    (125, "meta_l meta_r menu"),
)
"""The number of the first key of each row, and the names of that and the following ones."""

KEYS = {name: first + index for first, names in _ROWS for index, name in enumerate(names.split())}


def keycodes(names: Sequence[str]) -> list[int]:
    """Return the numbers of keys. Raises INVALID_ARGUMENT."""
    if not 1 <= len(names) <= MAX_KEYS:
        raise invalid("keys", f"{len(names)} keys were named; it takes 1 to {MAX_KEYS}")
    for name in names:
        if name not in KEYS:
            raise invalid("keys", f"{name!a} is not a key; the keys are: {', '.join(sorted(KEYS))}")
    return [KEYS[name] for name in names]
