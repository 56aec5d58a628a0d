"""What several test modules share: tiny policies, made-up data, stand-ins for the Hub and the simulator."""
