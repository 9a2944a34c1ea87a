"""The whole suite: rows with budgets, measured one after the other, written as they finish, drawn and tabled."""
