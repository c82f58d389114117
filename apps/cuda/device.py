"""The GPU (below)."""


class Device:
    @staticmethod
    def find(level, seconds, required=False):
        return None
