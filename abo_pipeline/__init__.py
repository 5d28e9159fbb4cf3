"""Search a product-photo archive by meaning.

The flow, in reading order; each module is one stage and says what stays out of it:

1. ``archive``    the tar: indexed by byte offset, never unpacked
   ``download``   brings it to this disk, from a ``remote`` place in some ``storage``
2. ``catalog``    images.csv.gz and the tar's members → the images that are kept, in ``sampling`` order
   ``listings``   listings_*.json.gz → products and their images
   ``plan``       what is left to embed, how long it takes, what it needs
3. ``decoding``   bytes → pixels, with limits
   ``encoder``    pixels and texts → unit vectors
   ``embedding``  one partition: what is missing → vectors and failures
4. ``store``      Postgres: tables, writes, vector indexes, nearest neighbours
   ``portable``   the vectors of a space as a file, for another machine
   ``evaluation`` what the indexes find and what effort that takes; ``plots`` of it
5. ``queries``    a text, a picture, a stored image or a mix of them, and ``filters``, as plain values
   ``query_vectors``  such a query → a unit vector; a picture of a URL by ``web_pictures``
   ``search``     the vector → ``hits``, pictures of one thing as one by ``folding``
6. ``report``     hits of three sizes → a page, numbers, and ``grids`` of ``pictures``
   ``ladder``     the ways to store and index vectors, measured; ``projection`` finds principal components
   ``golden``     hits of fixed queries, beside those of the index build before

``defs`` shows these to Dagster, ``cli`` and ``terminal`` to a person; neither holds logic of its own. ``runner`` runs
all of it in one process; ``pools``, ``local_launcher``, ``orphans``, ``celery_launcher`` and ``worker`` see to runs
elsewhere. ``sample`` draws a small archive to try it all on. Importing the package imports none of them.
"""
