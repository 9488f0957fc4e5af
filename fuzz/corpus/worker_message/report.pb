*œ
 ababababababababababababababababx
pij-0abc12345617 (0BoutÿJerrP`€„º°ª3hè‹º°ª3r(	zw1‚(aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaŠimg’why