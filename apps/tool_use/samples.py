"""Tools to try things with: fares, exchange rates, shares. Self-contained, so that the sandbox can run the file."""

RATES = {"EUR": 1.0, "USD": 1.1, "GBP": 0.85, "CHF": 0.95}
"""What one euro is, for the examples."""
TRAINS = {("Paris", "Lyon"): 62.0, ("Lyon", "Geneva"): 34.0, ("Paris", "Geneva"): 89.0, ("Geneva", "Milan"): 71.0}
COACHES = {("Paris", "Lyon"): 25.0, ("Lyon", "Turin"): 29.0, ("Paris", "Turin"): 48.0}


def train_fare(origin: str, destination: str) -> dict:
    """Fare of a train between two cities.

    Args:
        origin: city of departure
        destination: city of arrival
    """
    return {"fare": TRAINS[origin, destination], "currency": "EUR"}


def coach_fare(origin: str, destination: str) -> dict:
    """Fare of a coach between two cities.

    Args:
        origin: city of departure
        destination: city of arrival
    """
    return {"fare": COACHES[origin, destination], "currency": "EUR"}


def convert(amount: float, source: str, target: str) -> float:
    """Convert an amount of money.

    Args:
        amount: how much
        source: currency that is given, such as EUR
        target: currency that is wanted
    """
    return round(amount / RATES[source] * RATES[target], 2)


def share(total: float, people: int) -> float:
    """What each pays of a total.

    Args:
        total: to be shared
        people: how many share it
    """
    return round(total / people, 2)


TOOLS = (train_fare, coach_fare, convert, share)
