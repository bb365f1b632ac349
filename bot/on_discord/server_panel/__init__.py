"""The settings of a server: `/config`, its panel and forms."""
