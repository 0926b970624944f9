"""The colours of all pictures: Okabe and Ito's, its yellow left out, and an olive.

They are told apart with any colour vision.
"""

BLUE, SKY, GREEN, OLIVE = "#0072B2", "#56B4E9", "#009E73", "#999933"
VERMILION, ORANGE, PURPLE, BLACK = "#D55E00", "#E69F00", "#CC79A7", "#000000"
COLOURS = (VERMILION, BLUE, GREEN, PURPLE, SKY, ORANGE, BLACK, OLIVE)
