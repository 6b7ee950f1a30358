"""This worker among the others: what the fleet decides is done here, on links, relays and queues."""
