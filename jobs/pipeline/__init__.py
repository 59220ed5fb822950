"""Every night by itself: from deliveries and feedback to a release that is better, step by step."""
