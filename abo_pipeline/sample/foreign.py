"""German, French and Spanish for product types and colours, so that listings come in several languages.

Only words belong here. English ones stand in `products` and `captions`.
"""

from collections.abc import Mapping

LANGUAGES: tuple[str, ...] = ("de_DE", "fr_FR", "es_ES")
"""The language tags, in the order of the words below."""

COLOR_NAMES: Mapping[str, tuple[str, str, str]] = {
    "red": ("Rot", "Rouge", "Rojo"),
    "orange": ("Orange", "Orange", "Naranja"),
    "yellow": ("Gelb", "Jaune", "Amarillo"),
    "green": ("Grün", "Vert", "Verde"),
    "teal": ("Petrol", "Bleu canard", "Verde azulado"),
    "blue": ("Blau", "Bleu", "Azul"),
    "purple": ("Lila", "Violet", "Morado"),
    "pink": ("Rosa", "Rose", "Rosa"),
    "brown": ("Braun", "Marron", "Marrón"),
    "black": ("Schwarz", "Noir", "Negro"),
    "white": ("Weiß", "Blanc", "Blanco"),
    "grey": ("Grau", "Gris", "Gris"),
}

PRODUCT_NAMES: Mapping[str, tuple[str, str, str]] = {
    "CHAIR": ("Stuhl", "Chaise", "Silla"),
    "SOFA": ("Sofa", "Canapé", "Sofá"),
    "TABLE": ("Tisch", "Table", "Mesa"),
    "LAMP": ("Lampe", "Lampe", "Lámpara"),
    "BED": ("Bett", "Lit", "Cama"),
    "STOOL_SEATING": ("Hocker", "Tabouret", "Taburete"),
    "DRINKING_CUP": ("Becher", "Tasse", "Taza"),
    "BOTTLE": ("Flasche", "Bouteille", "Botella"),
    "VASE": ("Vase", "Vase", "Jarrón"),
    "KETTLE": ("Wasserkessel", "Bouilloire", "Hervidor"),
    "CLOCK": ("Uhr", "Horloge", "Reloj de pared"),
    "WATCH": ("Armbanduhr", "Montre", "Reloj de pulsera"),
    "SHOES": ("Schuhe", "Chaussures", "Zapatos"),
    "BOOT": ("Stiefel", "Bottes", "Botas"),
    "HANDBAG": ("Handtasche", "Sac à main", "Bolso"),
    "BACKPACK": ("Rucksack", "Sac à dos", "Mochila"),
    "LUGGAGE": ("Koffer", "Valise", "Maleta"),
    "HAT": ("Hut", "Chapeau", "Sombrero"),
    "SHIRT": ("Hemd", "Chemise", "Camisa"),
    "DRESS": ("Kleid", "Robe", "Vestido"),
    "SUNGLASSES": ("Sonnenbrille", "Lunettes de soleil", "Gafas de sol"),
    "HEADPHONES": ("Kopfhörer", "Casque audio", "Auriculares"),
    "CELLULAR_PHONE_CASE": ("Handyhülle", "Coque de téléphone", "Funda para móvil"),
    "RUG": ("Teppich", "Tapis", "Alfombra"),
    "UMBRELLA": ("Regenschirm", "Parapluie", "Paraguas"),
    "PILLOW": ("Kissen", "Coussin", "Cojín"),
}
