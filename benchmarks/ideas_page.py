def write_page(work):
    pass
