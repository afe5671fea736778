"""The road from a tutorial to its page. Nothing here needs MkDocs or the network.

    tutorials/NN_name.py
      source      jupytext makes a notebook of it
      run         nbmake executes the notebook where it is stale, and that run is the test
      clean       what differs between two runs of the same code is masked
    docs/tutorials/NN_name.ipynb
      page        its cells and outputs as the Markdown of a page
      links       links of the source tree become links of the site
      download    the notebooks that a reader takes away
      light       a built page without what nobody reads

`docs/_hooks/events.py` is what MkDocs calls; `python docs/_hooks` are the commands.
"""
