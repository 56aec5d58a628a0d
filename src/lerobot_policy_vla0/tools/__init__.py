"""What a person runs around the policy. The policy never imports it."""
