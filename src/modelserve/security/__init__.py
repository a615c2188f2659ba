"""Who may do what: authentication now; limits, encryption and audit have their place here."""
