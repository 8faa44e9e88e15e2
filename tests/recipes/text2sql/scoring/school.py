"""The schema of a school in the format of Spider's tables.json."""

TABLES = {
    "db_id": "school",
    "table_names_original": ["Student", "Club", "Member"],
    "column_names_original": [
        [-1, "*"], [0, "Id"], [0, "Name"], [0, "Age"], [0, "City"], [1, "Club_Id"], [1, "Name"], [1, "City"],
        [2, "Id"], [2, "Club_Id"], [2, "Since"],
    ],
    "foreign_keys": [[8, 1], [9, 5]],
}  # fmt: skip
