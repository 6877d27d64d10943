"""From a flow and a start to a result: integration in time, steps of an optimizer, sweeps."""
