"""Ways in: each transport turns its wire into messages for a `Servable`, and answers back."""
