"""Tables, plots and pages drawn from result documents."""
