"""What files are that are no pictures for titokc, by their first bytes."""

READABLE = "PNG, JPEG, WebP, TIFF, BMP, PPM, GIF or AVIF"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_STARTS = (
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"%PDF-", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"FUJIFILMCCD-RAW", "a camera raw picture (RAF)"),
    (b"IIRO", "a camera raw picture (ORF)"),
    (b"IIRS", "a camera raw picture (ORF)"),
    (b"IIU\0", "a camera raw picture (RW2)"),
)


def name_of(start: bytes) -> str:
    """Such as "an HEIC picture", or ""; of at least the first 16 bytes."""
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand == b"crx ":
            return "a camera raw picture (CR3)"
        if brand in _HEIF_BRANDS:
            return "an HEIC picture"
        return "" if brand in {b"avif", b"avis"} else "a film"
    return next((name for prefix, name in _STARTS if start.startswith(prefix)), "")
